"""Who gets how much RAM: turns a wanted target into memory that the host really has back."""
