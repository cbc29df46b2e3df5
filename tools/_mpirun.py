"""Start mpirun so that Ctrl-C ends the step and writes a checkpoint, as it does without.

mpirun kills its processes on Ctrl-C, but hands SIGUSR1 on to them. So it gets a session of its own, out of the
terminal's reach, and the signal that means the same to tools/train.py; a second Ctrl-C ends everything at once.

usage: python tools/_mpirun.py mpirun -n 2 ... tools/train.py ...
"""

import signal
import subprocess
import sys


def main() -> None:
    job = subprocess.Popen(sys.argv[1:], start_new_session=True)
    asked: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        job.send_signal(signal.SIGTERM if asked else signal.SIGUSR1)
        asked.append(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    status = job.wait()
    if status > 128 and not asked:
        print("a process has died; the same command goes on from the last checkpoint", file=sys.stderr)
    sys.exit(128 + asked[0] if asked and status else status)


if __name__ == "__main__":
    main()
