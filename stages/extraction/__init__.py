"""First-order policy extraction through a frozen world model (PWM), all tasks and seeds as one program."""
