#!/usr/bin/env python3
"""A DHCP backend for GGnet as an external program: it maintains an ethers file (ethers(5)) for your DHCP server.

    [dhcp]
    backend = "external"
    command = ["/usr/lib/ggnet/ethers.py"]
    config = { path = "/etc/ethers" }

    52:54:00:00:00:01 pc-17 # ggnet <instance> <id> <digest>

The comment in a line shows its owner; other lines are not changed. The file is replaced by a rename, so it is always either the old or
the new file, even if the program is killed. The protocol: docs/backend-authors.md. Uses only the standard library; copy it.
"""
import json, os, sys


class Refused(Exception):
    def __init__(self, kind, message, hint=None):
        self.error = {"kind": kind, "message": message, "hint": hint}


class Ethers:
    def __init__(self, protocol, port, instance, config, check):
        if protocol != 2 or port != "dhcp":
            raise Refused("unsupported", f"This is a dhcp backend for protocol 2, not {port} for {protocol}")
        if "path" not in config:
            raise Refused("invalid", "The file is not configured", 'config = { path = "/etc/ethers" }')
        self.path, self.mark = config["path"], f" # ggnet {instance} "

    def apply(self, changes):
        new = {}
        for change in changes:
            gone, host = change.get("remove"), change.get("ensure")
            if gone:
                new[gone["id"]] = []
            else:
                end = f"{self.mark}{host['id']} {host['digest']}\n"
                new[host["id"]] = [f"{mac} {host['name']}{end}" for mac in host["macs"]]
        self.put(new)
        return {"failed": []}

    def get(self, id):
        return next((entry for entry in self.list() if entry["id"] == id), None)

    def list(self):
        ours = {id: digest for id, digest in map(self.parse, self.lines()) if id}
        return [{"id": id, "digest": digest, "completeness": "whole"} for id, digest in ours.items()]

    def health(self):
        self.lines()
        return {"status": "up"}

    def lines(self):
        try:
            with open(self.path) as file:
                return file.readlines()
        except FileNotFoundError:
            return []

    def parse(self, line):
        """Id and digest of one of our lines; empty strings for any other line."""
        id, _, digest = line.rstrip("\n").partition(self.mark)[2].partition(" ")
        return id, digest

    def put(self, new):
        """Replaces the lines of these ids in a single change of the file."""
        old = self.lines()
        lines = [line for line in old if self.parse(line)[0] not in new] + sum(new.values(), [])
        if lines == old:
            return
        with open(self.path + ".ggnet-new", "w") as file:
            file.writelines(line if line.endswith("\n") else line + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(self.path + ".ggnet-new", self.path)


METHODS = {m: getattr(Ethers, m) for m in ("apply", "get", "list", "health")}


def main():
    ethers = None
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
                ethers = Ethers(**params)
                capabilities = {"leases": False, "observes": False}
                answer["result"] = {"protocol": 2, "port": "dhcp", "capabilities": capabilities}
            elif method in METHODS:
                answer["result"] = METHODS[method](ethers, **params)
            else:
                raise Refused("unsupported", f"Unknown method {method}")
        except Refused as e:
            answer["error"] = e.error
        except OSError as e:
            answer["error"] = {"kind": "permission" if e.errno == 13 else "unavailable", "message": str(e)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


main()
