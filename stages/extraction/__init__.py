"""Policies from a frozen world model (PWM, SVG, behaviour cloning), all tasks and seeds as one program."""
