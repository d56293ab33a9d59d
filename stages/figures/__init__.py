"""How figures look, for reports and for the stages that draw their own."""
