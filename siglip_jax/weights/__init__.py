"""Parameters and processor files of other libraries, read and written."""
