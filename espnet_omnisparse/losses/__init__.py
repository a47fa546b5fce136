"""What subnets are trained to lower, beside ESPnet's own losses."""
