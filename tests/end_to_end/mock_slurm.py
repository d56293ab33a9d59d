"""The commands of SLURM that submitit calls, for test_fanout_command.py: `mock_slurm.py sbatch|srun|... ARGUMENTS`.

A job is a process group of its own; below $MOCK_SLURM stand its process id, <job>.pid, and, once it has ended, its exit
code, <job>.code.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

FOLDER = Path(os.environ["MOCK_SLURM"])


def sbatch(script: str) -> None:
    """Start every element of the array, as processes that outlive this one."""
    text = Path(script).read_text()
    number = 1 + len(list(FOLDER.glob("*.job")))
    (FOLDER / f"{number}.job").write_text(text)
    array = re.search(r"--array=0-(\d+)", text)
    for index in range(int(array[1]) + 1) if array else [None]:
        job = f"{number}" if index is None else f"{number}_{index}"
        environment = {**os.environ, "SLURM_JOB_ID": str(number), "MOCK_JOB": job}
        if index is not None:
            environment |= {"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(index)}
        again = f"rm -f {job}.requeue; bash {number}.job; code=$?; [ -e {job}.requeue ]"
        run = f"while {again}; do :; done; echo $code > {job}.code"
        nothing = subprocess.DEVNULL
        subprocess.Popen(
            ["bash", "-c", run], cwd=FOLDER, env=environment, start_new_session=True, stdout=nothing, stderr=nothing
        )
    print(f"Submitted batch job {number}")


def srun(*arguments: str) -> None:
    """Run the command behind the options, in a process group of its own, which takes the signals of the job."""
    command = list(arguments)
    output = {}
    while command[0].startswith("--"):
        option = command.pop(0)
        if option in ("--output", "--error"):
            output[option] = re.sub("%A_%a|%j", os.environ["MOCK_JOB"], command.pop(0)).replace("%t", "0")
    with Path(output["--output"]).open("a") as out, Path(output["--error"]).open("a") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True)
        (FOLDER / f"{os.environ['MOCK_JOB']}.pid").write_text(str(process.pid))
        sys.exit(process.wait())


def sacct(*arguments: str) -> None:
    print("JobID|State|NodeList")
    for job in sorted(path.stem for path in FOLDER.glob("*.pid")):
        code = FOLDER / f"{job}.code"
        print(f"{job}|{state(code.read_text().strip()) if code.exists() else 'RUNNING'}|node1")


def state(code: str) -> str:
    return "COMPLETED" if code == "0" else "NODE_FAIL"


def scancel(job: str) -> None:
    os.killpg(int((FOLDER / f"{job}.pid").read_text()), signal.SIGTERM)


def scontrol(command: str, job: str) -> None:
    (FOLDER / f"{job}.requeue").touch()


if __name__ == "__main__":
    {"sbatch": sbatch, "srun": srun, "sacct": sacct, "scancel": scancel, "scontrol": scontrol}[sys.argv[1]](
        *sys.argv[2:]
    )
