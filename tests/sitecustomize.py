"""Which GPU does a process have that a test with a simulated GPU starts? (Python imports this)"""

import simulated_gpu

simulated_gpu.install_from_environment()
