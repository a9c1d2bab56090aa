"""The institution's node: data, privacy, policy. Everything that protects rows lives here."""
