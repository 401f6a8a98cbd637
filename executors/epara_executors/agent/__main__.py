"""python -m epara_executors.agent"""

import sys

from epara_executors.agent.main import main

if __name__ == "__main__":
    sys.exit(main())
