"""Trained encoders in the formats that serving systems read."""
