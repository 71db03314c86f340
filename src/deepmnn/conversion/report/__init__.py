"""The report of a conversion: what is stored, and what rounding did to it."""
