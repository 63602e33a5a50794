"""What every other package builds on: devices, meshes, shardings, processes, compiler options, files, monitoring."""
