from .audit_page import audit_dataset as audit_dataset
from .leakage import Leakage as Leakage
from .leakage import check_leakage as check_leakage
from .leakage import check_log as check_log
from .leakage import find_leakage as find_leakage
from .leakage import find_log_leakage as find_log_leakage
