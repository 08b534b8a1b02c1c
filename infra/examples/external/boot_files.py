#!/usr/bin/env python3
"""A boot file store for GGnet as an external program: a folder that your TFTP or HTTP server serves.

    [boot_files]
    backend = "external"
    command = ["/usr/lib/ggnet/boot_files.py"]
    config = { root = "/srv/tftp" }

    <root>/machines/52-….ipxe                          a link to the file below: what a client asks for
    <root>/.ggnet-<instance>/<id>/machines/52-….ipxe   the file; the folder name shows the owner
    <root>/.ggnet-<instance>/<id>/.digest              written last: a bundle without it is partial

Requests are handled one after the other, so nothing here runs concurrently. If the program is killed at any point, the next `ensure`
completes and the next `remove` removes everything. The protocol: docs/backend-authors.md. Uses only the standard library; copy it.
"""
import base64, errno, fcntl, json, os, shutil, sys
from pathlib import Path


class Refused(Exception):
    def __init__(self, kind, message, hint=None):
        self.error = {"kind": kind, "message": message, "hint": hint}


class Store:
    def __init__(self, protocol, port, instance, config, check):
        if protocol != 2 or port != "boot_files":
            raise Refused("unsupported", f"This is a boot_files backend for protocol 2, not {port} for {protocol}")
        if "root" not in config:
            raise Refused("invalid", "The folder is not configured", 'config = { root = "/srv/tftp" }')
        self.root = Path(config["root"])
        self.ours = f".ggnet-{instance}"
        if not self.root.is_dir():
            raise Refused("not_found", f"The folder {self.root} does not exist", f"sudo install -d -o USER {self.root}")
        if not check:  # `ggnet-server check` only inspects; another instance of this program may be running
            (self.root / self.ours).mkdir(exist_ok=True)
            # A predecessor that was killed may still be in its last system call.
            self.lock = open(self.root / self.ours / ".lock", "w")
            fcntl.flock(self.lock, fcntl.LOCK_EX)

    def ensure(self, id, digest, files):
        for path in files:
            if self.owner(path) not in (None, id):
                raise Refused("conflict", f"{self.root / path} belongs to another owner")
        home = self.root / self.ours / id
        home.mkdir(parents=True, exist_ok=True)
        (home / ".digest").unlink(missing_ok=True)
        for path in bundle_files(home) - set(files):
            self.drop(id, path)
        for path, content in files.items():
            write(home, path, base64.b64decode(content))
            self.link(id, path)
        write(home, ".digest", digest.encode())

    def remove(self, id):
        home = self.root / self.ours / id
        if not home.is_dir():
            return
        (home / ".digest").unlink(missing_ok=True)
        for path in bundle_files(home):
            self.drop(id, path)
        shutil.rmtree(home)

    def get(self, id):
        home = self.root / self.ours / id
        return self.listed(home) if home.is_dir() else None

    def list(self):
        homes = sorted((self.root / self.ours).iterdir())
        return [self.listed(home) for home in homes if not home.name.startswith(".")]

    def listed(self, home):
        try:
            return {"id": home.name, "digest": (home / ".digest").read_text(), "completeness": "whole"}
        except FileNotFoundError:
            return {"id": home.name, "completeness": "partial"}

    def read(self, path):
        id = self.owner(path)
        if not id or id == OTHERS:
            raise Refused("not_found", f"No boot file {path}")
        content = (self.root / self.ours / id / path).read_bytes()
        return {"content": base64.b64encode(content).decode()}

    def health(self):
        if os.access(self.root / self.ours, os.W_OK):
            return {"status": "up"}
        return {"status": "down", "reason": f"{self.root / self.ours} is not writable"}

    def owner(self, path):
        """The bundle that a path belongs to; None: the path is free; OTHERS: a file that is not ours."""
        try:
            text = os.readlink(self.root / path)
        except FileNotFoundError:
            return None
        except OSError:  # a file, a folder, or below a file
            return OTHERS
        start, end = "../" * path.count("/") + self.ours + "/", "/" + path
        if not (text.startswith(start) and text.endswith(end)):
            return OTHERS
        id = text[len(start) : -len(end)]
        return id if (self.root / self.ours / id / path).is_file() else None

    def link(self, id, path):
        link = self.root / path
        if self.owner(path) is None:
            link.unlink(missing_ok=True)  # a dangling link
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to("../" * path.count("/") + f"{self.ours}/{id}/{path}")

    def drop(self, id, path):
        """Removes the link before the file, so that no client finds a dangling link."""
        link = self.root / path
        if self.owner(path) == id:
            link.unlink()
        (self.root / self.ours / id / path).unlink()
        for folder in list(link.parents)[: path.count("/")]:
            try:
                folder.rmdir()
            except OSError:  # not empty
                break


OTHERS = "somebody else"
METHODS = {m: getattr(Store, m) for m in ("ensure", "remove", "get", "list", "read", "health")}
KINDS = {errno.ENOSPC: "full", errno.EDQUOT: "full", errno.EACCES: "permission", errno.EPERM: "permission", errno.EROFS: "permission"}


def bundle_files(home):
    names = [Path(folder, name) for folder, _, names in os.walk(home) for name in names if not name.startswith(".")]
    return {str(name.relative_to(home)) for name in names}


def write(home, path, content):
    """Replaces a file atomically: a reader gets the whole old file or the whole new one."""
    file = home / path
    if file.is_file() and file.read_bytes() == content:
        return
    with open(home / ".new", "wb") as new:
        new.write(content)
        new.flush()
        os.fsync(new.fileno())
    file.parent.mkdir(parents=True, exist_ok=True)
    os.replace(home / ".new", file)


def main():
    os.umask(0o022)  # the TFTP or HTTP server runs as another user
    store = None
    for line in sys.stdin.buffer:
        message = json.loads(line)
        method, params = message["method"], message["params"]
        if method == "shutdown":
            break
        if method == "cancel":  # the request was already finished before this line was read
            continue
        answer = {"id": message["id"]}
        try:
            if method == "hello":
                store = Store(**params)
                answer["result"] = {"protocol": 2, "port": "boot_files"}
            elif method in METHODS:
                answer["result"] = METHODS[method](store, **params)
            else:
                raise Refused("unsupported", f"Unknown method {method}")
        except Refused as e:
            answer["error"] = e.error
        except OSError as e:
            answer["error"] = {"kind": KINDS.get(e.errno, "unavailable"), "message": str(e)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


main()
