"""The beam search where the model is: topology, choice of beams and cache on the device, one copy back at the end."""
