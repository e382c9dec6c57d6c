"""What a run leaves: its rows, the files and W&B run they go to, the lines on the screen, and reading them back."""
