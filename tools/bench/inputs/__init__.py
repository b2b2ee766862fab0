"""What benches read where no catalogue is given."""
