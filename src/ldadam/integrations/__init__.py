"""LDAdamW inside other people's trainers: one module each, imported on demand, which alone imports its framework."""
