#!/usr/bin/env python3
"""A complete command site: a directory on this machine, its volumes and its processes.

    reach = "command"
    command = ["python3", "site.py", "/srv/site-b", "lifeboat", "protect", "--site", "b"]

The first argument is the site's directory, the others are how the host's own `lifeboat protect` is started. One JSON
object is read from stdin, one is written to stdout (docs/command-site.md). Replace the functions below by calls to
whatever runs your site; what must hold for each of them stands in its first lines.
"""

import datetime
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(sys.argv[1]).resolve()
AGENT = sys.argv[2:]
MARK = "COMMAND_SITE=" + hashlib.sha256(bytes(ROOT)).hexdigest()


class Failed(Exception):
    def __init__(self, error, may_pass=False):
        super().__init__(error)
        self.may_pass = may_pass


# Names and places ----------------------------------------------------------------------------------------------------


def safe(name):
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise Failed(f"`{name}` cannot be a file name")
    return name


def base(isolation):
    return ROOT / "isolated" / safe(isolation) if isolation else ROOT


def volume_of(volume, isolation):
    """A data set's directory; for a database, the directory that its file is in."""
    source = volume["source"]
    if "files" in source:
        path = pathlib.PurePosixPath(source["files"]["path"])
    elif "sqlite" in source:
        path = pathlib.PurePosixPath(source["sqlite"]["path"]).parent
    else:
        raise Failed(f"data set `{volume['dataset']}` lies in no directory")
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise Failed(f"the path of data set `{volume['dataset']}` leads out of the site's volumes")
    return base(isolation) / "volumes" / path


def instance_id(instance):
    return f"{instance['service']}.{instance['component']}.{instance['number']}"


def down_marker(write_domain):
    return ROOT / "down" / safe(write_domain)


# Processes: each carries marks in its environment, and so does all that it starts -------------------------------------


def marks(instance, domain, isolation, address=""):
    return {
        "COMMAND_SITE": MARK.split("=", 1)[1],
        "COMMAND_SITE_INSTANCE": instance,
        "COMMAND_SITE_DOMAIN": domain,
        "COMMAND_SITE_ISOLATION": isolation or "",
        "COMMAND_SITE_ADDRESS": address or "",
    }


def processes(**wanted):
    """The living processes of this site that carry all the wanted marks."""
    wanted = {MARK, *(f"COMMAND_SITE_{name.upper()}={value}" for name, value in wanted.items())}
    found = []
    for directory in pathlib.Path("/proc").iterdir():
        if directory.name.isdigit() and int(directory.name) != os.getpid():
            try:
                environment = set(os.fsdecode((directory / "environ").read_bytes()).split("\0"))
                state = (directory / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if wanted <= environment and state not in "ZX":
                found.append(int(directory.name))
    return found


def holders(paths):
    """Who has something open below one of the paths."""
    found = []
    for directory in pathlib.Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            links = [directory / "cwd", *(directory / "fd").iterdir()]
        except OSError:
            continue
        for link in links:
            try:
                target = pathlib.Path(os.readlink(link).removesuffix(" (deleted)"))
            except OSError:
                continue
            if any(target == path or path in target.parents for path in paths):
                found.append(f"process {directory.name} holds `{target}` open")
    return found


def reveal(value):
    """A secret is looked up here, at the moment of use, and is neither printed nor kept."""
    if isinstance(value, str):
        return value
    if "env" in value:
        return os.environ[value["env"]]
    if "file" in value:
        return (ROOT / value["file"]).read_text().removesuffix("\n")
    return subprocess.run(value["command"], check=True, capture_output=True, text=True).stdout.removesuffix("\n")


def launch(command, env, directory, log):
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:
        child = subprocess.Popen(
            command, cwd=directory, env={**os.environ, **env}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )
    return child.pid


def kill(**wanted):
    """SIGKILL until nothing is found; answers how many were killed."""
    killed = set()
    for _ in range(500):
        left = processes(**wanted)
        if not left:
            return len(killed)
        for pid in left:
            killed.add(pid)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.01)
    raise Failed(f"processes {left} cannot be killed", may_pass=True)


# The verbs -----------------------------------------------------------------------------------------------------------


def start(asked):
    """Starts, or finds started. Must refuse while the write domain is fenced here."""
    instance, isolation = asked["instance"], asked["context"]["isolation"]
    name, domain = instance_id(instance), instance["service"]
    if not isolation and down_marker(domain).exists():
        raise Failed(f"`{domain}` is fenced here")
    if isolation and not base(isolation).is_dir():
        raise Failed(f"there is no isolation `{isolation}`")
    running = processes(instance=name, isolation=isolation or "")
    if running:
        return {"facts": {"pid": min(running), "already_running": True}}
    volumes = base(isolation) / "volumes"
    volumes.mkdir(parents=True, exist_ok=True)
    env = {key: reveal(value) for key, value in instance["env"].items()}
    env |= marks(name, domain, isolation, instance["address"])
    directory = volumes / (instance.get("directory") or "")
    pid = launch(instance["command"], env, directory, base(isolation) / "logs" / f"{safe(name)}.log")
    return {"facts": {"pid": pid, "already_running": False}}


def seconds(span):
    units = {"w": 604800, "d": 86400, "h": 3600, "m": 60, "s": 1, "ms": 0.001}
    return sum(int(count) * units[unit] for count, unit in re.findall(r"(\d+)([a-z]+)", span))


def stop(asked):
    """Stops gracefully within `stop_within`; it is an error, not a kill, if that is not enough."""
    instance, isolation = asked["instance"], asked["context"]["isolation"]
    name, told = instance_id(instance), set()
    until = time.monotonic() + seconds(instance["stop_within"])
    while left := processes(instance=name, isolation=isolation or ""):
        if time.monotonic() > until:
            raise Failed(f"`{name}` still runs after {instance['stop_within']}: processes {left}", may_pass=True)
        for pid in set(left) - told:
            told.add(pid)
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                pass
        time.sleep(0.02)
    return {}


def observe(asked):
    """What is so now: running, stopped, or unknown with `why`. A drill's instance differs from the live one by its address."""
    instance = asked["instance"]
    running = processes(instance=instance_id(instance), address=instance["address"] or "")
    return {"state": "running" if running else "stopped"}


def fence(asked):
    """Only what is proven may be called proven: nothing runs, nothing is open, nothing can start."""
    domain, context = asked["write_domain"], asked["context"]
    marker = down_marker(domain)
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps({"epoch": context["epoch"], "run": context["run"]}))
    killed = kill(domain=domain, isolation="")
    volumes = [volume_of(volume, None) for volume in asked["volumes"] if {"files", "sqlite"} & volume["source"].keys()]
    remains = holders(volumes)
    if remains or not marker.exists():
        return {
            "fence": "unproven",
            "why": "; ".join(remains) or "the down marker is gone",
            "statement": f"I have seen that nothing writes in `{domain}` any more, although {'; '.join(remains)}",
        }
    return {
        "fence": "proven",
        "proof": f"{killed} processes killed, none left, nothing open in {len(volumes)} volumes, starts are blocked",
        "facts": {"killed": killed, "down_marker": str(marker)},
    }


def lift_fence(asked):
    down_marker(asked["write_domain"]).unlink(missing_ok=True)
    return {}


def locate_volume(asked):
    """Where it is, or no path. Creates nothing."""
    path = volume_of(asked["volume"], asked["context"]["isolation"])
    return {"path": str(path) if path.exists() else None}


def place_volume(asked):
    """Where it belongs; its parent exists afterwards."""
    path = volume_of(asked["volume"], asked["context"]["isolation"])
    path.parent.mkdir(parents=True, exist_ok=True)
    return {"path": str(path)}


def note(asked):
    """Where this verb leaves word of what it did, so that doing it again under the same key does nothing more."""
    key = "\0".join([asked["verb"], asked["context"]["idempotency_key"], json.dumps(asked["volume"])])
    path = ROOT / "done" / hashlib.sha256(key.encode()).hexdigest()
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def free_name(path, word):
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
    return path.with_name(f"{path.name}.{word}-{now}")


def set_aside(asked):
    """Renames what is there; never overwrites, and moves one thing once under one idempotency key."""
    path, done = volume_of(asked["volume"], asked["context"]["isolation"]), note(asked)
    if done.exists() and pathlib.Path(done.read_text()).exists():
        return {"path": done.read_text()}
    if not path.exists():
        return {}
    aside = free_name(path, f"aside-{asked['context']['epoch']}")
    done.write_text(str(aside))
    path.rename(aside)
    return {"path": str(aside)}


def put_back(asked):
    """Undoes a set-aside of this epoch; what has come there since is moved aside in its turn."""
    path, done = volume_of(asked["volume"], asked["context"]["isolation"]), note(asked)
    epoch = asked["context"]["epoch"]
    asides = sorted(path.parent.glob(f"{path.name}.aside-{epoch}-*"))
    if not asides:
        return {"path": str(path)} if done.exists() and path.exists() else {}
    done.touch()
    if path.exists():
        path.rename(free_name(path, f"undone-{epoch}"))
    asides[0].rename(path)
    return {"path": str(path)}


def ensure_agent(asked):
    """The host's own `lifeboat protect` runs afterwards."""
    if not AGENT:
        raise Failed("nobody said how `lifeboat protect` is started here")
    running = processes(instance="agent")
    pid = running[0] if running else launch(AGENT, marks("agent", "", ""), "/", ROOT / "logs" / "agent.log")
    return {"facts": {"pid": pid, "already_running": bool(running)}}


def run(asked):
    """A user's command, here."""
    isolation = asked["context"]["isolation"]
    volumes = base(isolation) / "volumes"
    volumes.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, **marks("run", "", isolation)}
    ended = subprocess.run(asked["command"], cwd=volumes, env=env, capture_output=True, text=True)
    if ended.returncode != 0:
        raise Failed(f"`{asked['command'][0]}` failed ({ended.returncode}): {ended.stderr[-2000:].strip()}")
    return {"facts": {"output": ended.stdout[-2000:].strip()}}


def isolate(asked):
    """A drill's own directory and address; again and again the same."""
    directory = base(asked["isolation"])
    (directory / "volumes").mkdir(parents=True, exist_ok=True)
    a, b, c = hashlib.sha256(bytes(directory)).digest()[:3]
    return {"facts": {"address": f"127.{128 | a & 63}.{b}.{1 + c % 254}", "volumes": str(directory / "volumes")}}


def remove_isolation(asked):
    kill(isolation=asked["isolation"])
    shutil.rmtree(base(asked["isolation"]), ignore_errors=True)
    return {}


def what_is_left(asked):
    """Everything of the isolation that still exists, in words; an empty list if nothing does."""
    directory = base(asked["isolation"])
    left = [f"process {pid} still runs" for pid in processes(isolation=asked["isolation"])]
    left += [f"`{directory}` still exists"] if directory.exists() else []
    return {"left": left + holders([directory])}


VERBS = {verb.__name__.replace("_", "-"): verb for verb in (
    start, stop, observe, fence, lift_fence, locate_volume, place_volume, set_aside, put_back, ensure_agent, run,
    isolate, remove_isolation, what_is_left,
)}


def main():
    asked = json.load(sys.stdin)
    try:
        verb = VERBS.get(asked["verb"])
        if verb is None:
            raise Failed(f"this site cannot `{asked['verb']}`")
        answer = {"ok": True, **verb(asked)}
    except Failed as failed:
        answer = {"ok": False, "error": str(failed), "may_pass": failed.may_pass}
    json.dump(answer, sys.stdout)
    sys.exit(0 if answer["ok"] else 1)


if __name__ == "__main__":
    main()
