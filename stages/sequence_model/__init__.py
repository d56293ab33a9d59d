"""Action world models: sequence models conditioned on actions only, and policies by backpropagation through them."""
