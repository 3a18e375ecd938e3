"""What a pretraining run is made of besides the method: callbacks, files, faults."""
