#!/usr/bin/env python3
"""A writeback store for GGnet as an external program: a raw copy of the image for each session. The copy shares its blocks with the image
if the file system supports it (XFS, btrfs). Its disks are files, for a target that accepts files.

    [writeback]
    backend = "external"
    command = ["/usr/lib/ggnet/copies.py"]
    config = { root = "/srv/ggnet/copies" }
    deadline_s = 600                               # a full copy, without shared blocks, may take this long

    <root>/<instance>-<id>/<version>.<digest>.raw  the disk; it gets this name when it is complete
    <root>/<instance>-<id>/.new                    a disk that is not complete yet

Requests for the same id are handled in order, requests for different ids concurrently. If the program is killed at any point, the next
`ensure` completes and the next `remove` removes everything. The protocol: docs/backend-authors.md. Uses only the standard library.
"""
import errno, fcntl, json, os, shutil, sys, threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

FICLONE = 0x40049409  # ioctl_ficlone(2)


class Refused(Exception):
    def __init__(self, kind, message, hint=None):
        self.error = {"kind": kind, "message": message, "hint": hint}


class Store:
    def __init__(self, protocol, port, instance, config, check):
        if protocol != 2 or port != "writeback":
            raise Refused("unsupported", f"This is a writeback backend for protocol 2, not {port} for {protocol}")
        if "root" not in config:
            raise Refused("invalid", "The folder is not configured", 'config = { root = "/srv/ggnet/copies" }')
        self.root, self.ours = Path(config["root"]), f"{instance}-"
        if not self.root.is_dir():
            raise Refused("not_found", f"The folder {self.root} does not exist", f"sudo install -d -o USER {self.root}")
        if not check:  # `ggnet-server check` only inspects; another instance of this program may be running
            # A predecessor that was killed may still be in its last system call.
            self.lock = open(self.root / f".{instance}.lock", "w")
            fcntl.flock(self.lock, fcntl.LOCK_EX)

    def ensure(self, id, digest, base):
        home = self.root / (self.ours + id)
        disk, wanted = self.disk(home), home / f"{base['version']}.{digest}.raw"
        if disk is None:
            if os.stat(base["path"]).st_size != base["size_bytes"]:
                raise Refused("corrupt", f"{base['path']} is not {base['size_bytes']} bytes long")
            home.mkdir(exist_ok=True)
            try:
                copy(base["path"], home / ".new")
            except OSError:
                shutil.rmtree(home)
                raise
            os.rename(home / ".new", wanted)
        elif disk != wanted:
            raise Refused("busy", f"{disk} is over another version, so its changes cannot be used with this one")
        return {"file": {"path": str(wanted), "format": "raw"}}

    def remove(self, id, how):
        home = self.root / (self.ours + id)
        if home.exists():
            shutil.rmtree(home)

    def get(self, id):
        home = self.root / (self.ours + id)
        try:
            return self.listed(home) if home.exists() else None
        except FileNotFoundError:  # it was removed in the meantime
            return None

    def list(self):
        listed = []
        for home in sorted(self.root.glob(f"{self.ours}*")):
            try:
                listed.append(self.listed(home))
            except FileNotFoundError:  # it was removed in the meantime
                pass
        return listed

    def listed(self, home):
        disk, id = self.disk(home), home.name[len(self.ours) :]
        if disk is None:
            return {"id": id, "completeness": "partial", "bytes": 0}
        version, digest, _ = disk.name.split(".")
        used = disk.stat().st_blocks * 512
        return {"id": id, "digest": digest, "completeness": "whole", "base": version, "bytes": used}

    def disk(self, home):
        return next(home.glob("*.raw"), None)

    def health(self):
        usage = shutil.disk_usage(self.root)
        if usage.free < usage.total // 20:
            return {"status": "degraded", "reason": f"The file system of {self.root} is nearly full: free some space"}
        return {"status": "up"}


METHODS = {m: getattr(Store, m) for m in ("ensure", "remove", "get", "list", "health")}
KINDS = {errno.ENOENT: "not_found", errno.ENOSPC: "full", errno.EDQUOT: "full", errno.EACCES: "permission", errno.EPERM: "permission"}


def copy(source, target):
    """Shares the blocks with the source, or copies them and skips holes."""
    with open(source, "rb") as old, open(target, "wb") as new:
        try:
            fcntl.ioctl(new, FICLONE, old.fileno())
        except OSError:
            end = os.fstat(old.fileno()).st_size
            at = 0
            while at < end:
                try:
                    at = os.lseek(old.fileno(), at, os.SEEK_DATA)
                except OSError:  # only a hole is left
                    break
                hole = os.lseek(old.fileno(), at, os.SEEK_HOLE)
                os.lseek(new.fileno(), at, os.SEEK_SET)
                while at < hole:
                    at += os.sendfile(new.fileno(), old.fileno(), at, min(hole - at, 1 << 30))
            os.ftruncate(new.fileno(), end)
        os.fsync(new.fileno())


def handle(store, message, previous):
    if previous:
        wait([previous])
    answer = {"id": message["id"]}
    try:
        if message["method"] not in METHODS:
            raise Refused("unsupported", f"Unknown method {message['method']}")
        answer["result"] = METHODS[message["method"]](store, **message["params"])
    except Refused as e:
        answer["error"] = e.error
    except OSError as e:
        answer["error"] = {"kind": KINDS.get(e.errno, "unavailable"), "message": str(e)}
    except Exception as e:  # an exception in a worker thread would otherwise be lost
        answer["error"] = {"kind": "internal", "message": repr(e)}
    say(answer)


speaking = threading.Lock()


def say(answer):
    with speaking:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def main():
    hello = json.loads(sys.stdin.buffer.readline())
    try:
        store = Store(**hello["params"])
    except Refused as e:
        return say({"id": 0, "error": e.error})
    capabilities = {"provides": "file", "kill_safe": True, "power_safe": True, "discard": True}
    say({"id": 0, "result": {"protocol": 2, "port": "writeback", "capabilities": capabilities}})
    last = {}  # the last request in flight for each id; a request without an id uses its own number
    with ThreadPoolExecutor(16) as pool:  # leaving this block waits for all requests
        for line in sys.stdin.buffer:
            message = json.loads(line)
            if message["method"] == "shutdown":
                break
            if message["method"] == "cancel":  # a request that has started is finished; that does no harm
                continue
            id = message["params"].get("id", message["id"])
            last[id] = pool.submit(handle, store, message, last.get(id))
            last = {id: future for id, future in last.items() if not future.done()}


main()
