"""How a training tells its progress to a program that shows it for several at once."""

PROGRESS_VARIABLE = "OPTLAB_PROGRESS"  # set to "lines" by that program, for which each training then prints lines
PROGRESS_PREFIX = "::progress "  # begins them; JSON follows
