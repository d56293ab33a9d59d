"""The parts of the report: what is read, what is tabulated, what is drawn, and the page."""
