"""Jobs of two processes on this machine."""

import json
import socket
import subprocess
import sys
from pathlib import Path


def two_processes(script, *args):
    """The last line that each process prints, a JSON object."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, args)]
    both = [
        subprocess.Popen([*command, str(i), address], stdout=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    try:
        outs = [process.communicate(timeout=400)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0]
    return [json.loads(out.splitlines()[-1]) for out in outs]
