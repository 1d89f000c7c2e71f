"""What the commands share: flags, the model and its adapters, files, pages."""
