"""Operating system and hardware: devices, processor, threads, memory allocation, signals, files, and progress."""
