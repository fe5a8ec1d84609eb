"""opdkit."""
