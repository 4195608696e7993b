"""What every attack and every method keeps."""
