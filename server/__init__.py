"""The coordinator: it asks, checks each reply alone, decides by the study, and logs every decision."""
