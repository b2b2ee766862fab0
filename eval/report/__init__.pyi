from .blend_page import render_blend as render_blend
from .report_page import render as render
from .report_page import write_report as write_report
from .report_text import format_table as format_table
