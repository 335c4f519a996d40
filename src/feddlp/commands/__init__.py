"""What the command line can do: one function a command, its docstring the help, grouped by what it works on."""
