"""What every room stands on: devices and meshes, shardings, processes, the compiler, files, monitoring."""
