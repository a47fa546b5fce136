"""From a trained ESPnet model to a family of sizes in one command."""
