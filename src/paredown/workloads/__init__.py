"""Small real tasks with data, judges and training batches; nothing is downloaded."""
