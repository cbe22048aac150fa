"""Reads a vault with nothing of lifeboat: written from docs/vault-format.md and docs/tree-format.md alone.

    reader.py VAULT KEYFILE OWNER OUT

opens the vault in the directory VAULT with the age identity in KEYFILE, believing only the owner with that fingerprint; restores every
recovery point to OUT/points/ID, and writes the payloads of every log to OUT/logs/DATASET/LINEAGE/TIMELINE/NUMBER. Fails on anything
that is not as the pages say.
"""

import base64
import os
import pathlib
import struct
import sys
import urllib.parse

import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

RAW = (Encoding.Raw, PublicFormat.Raw)


def must(right, what):
    if not right:
        raise SystemExit(f"not as the format says: {what}")


def hkdf(secret, salt, info):
    return HKDF(hashes.SHA256(), 32, salt or None, info).derive(secret)


# CBOR (RFC 8949), definite lengths.


def cbor(data, at=0):
    first = data[at]
    major, short = first >> 5, first & 31
    at += 1
    if major == 7:
        return {20: False, 21: True, 22: None}[short], at
    if short < 24:
        value = short
    else:
        width = {24: 1, 25: 2, 26: 4, 27: 8}[short]
        value = int.from_bytes(data[at : at + width], "big")
        at += width
    if major == 0:
        return value, at
    if major == 1:
        return -1 - value, at
    if major in (2, 3):
        must(at + value <= len(data), "a string that breaks off")
        text = bytes(data[at : at + value])
        return (text if major == 2 else text.decode()), at + value
    if major == 4:
        items = []
        for _ in range(value):
            item, at = cbor(data, at)
            items.append(item)
        return items, at
    must(major == 5, f"CBOR of type {major}")
    pairs = {}
    for _ in range(value):
        key, at = cbor(data, at)
        pairs[key], at = cbor(data, at)
    return pairs, at


def decode(data):
    value, end = cbor(data)
    must(end == len(data), "something follows the value")
    return value


class Record(list):
    """Trailing absent values are null."""

    def __getitem__(self, place):
        return super().__getitem__(place) if isinstance(place, slice) or place < len(self) else None


def record(data):
    return Record(decode(data))


# age v1 (age-encryption.org/v1), X25519.

LETTERS = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"


def bech32(text):
    values = [LETTERS.index(letter) for letter in text.lower().rsplit("1", 1)[1]][:-6]
    bits = value = 0
    out = bytearray()
    for five in values:
        value, bits = (value << 5 | five) & 0xFFF, bits + 5
        if bits >= 8:
            bits -= 8
            out.append(value >> bits & 255)
    return bytes(out)


def identity(text):
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return X25519PrivateKey.from_private_bytes(bech32(lines[0]))


def base64_of(text):
    return base64.b64decode(text + "=" * (-len(text) % 4))


def open_age(data, keys):
    head, mac_line = data.split(b"\n--- ", 1)
    mac, body = mac_line.split(b"\n", 1)
    lines = head.decode().split("\n")
    must(lines[0] == "age-encryption.org/v1", "an age file")
    at = 1
    file_key = None
    while at < len(lines):
        words = lines[at].split(" ")
        must(words[0] == "->", "an age stanza")
        at += 1
        wrapped = ""
        while True:
            wrapped, short = wrapped + lines[at], len(lines[at]) < 64
            at += 1
            if short:
                break
        if words[1] != "X25519":
            continue
        share = base64_of(words[2])
        for key in keys:
            shared = key.exchange(X25519PublicKey.from_public_bytes(share))
            wrap = hkdf(shared, share + key.public_key().public_bytes(*RAW), b"age-encryption.org/v1/X25519")
            try:
                file_key = ChaCha20Poly1305(wrap).decrypt(bytes(12), base64_of(wrapped), None)
            except Exception:
                continue
    if file_key is None:
        return None
    check = hmac.HMAC(hkdf(file_key, b"", b"header"), hashes.SHA256())
    check.update(head + b"\n---")
    check.verify(base64_of(mac.decode()))
    stream = ChaCha20Poly1305(hkdf(file_key, body[:16], b"payload"))
    sealed, out, number = body[16:], b"", 0
    while True:
        piece, sealed = sealed[: 65536 + 16], sealed[65536 + 16 :]
        last = not sealed
        out += stream.decrypt(number.to_bytes(11, "big") + bytes([last]), piece, None)
        number += 1
        if last:
            return out


# The vault.


def unpack(codec, data):
    must(codec in (0, 1), f"codec {codec}")
    return data if codec == 0 else zstandard.ZstdDecompressor().decompressobj().decompress(data)


def open_sealed(data, keys, place):
    (length,) = struct.unpack_from("<I", data)
    secret = open_age(data[4 : 4 + length], keys)
    if secret is None:
        return None
    must(len(secret) == 32, "a secret of 32 bytes")
    codec = data[4 + length]
    key = hkdf(secret, b"", b"lifeboat sealed value 1")
    plain = AESGCM(key).decrypt(bytes(4) + struct.pack(">Q", codec), data[5 + length :], place.encode())
    return unpack(codec, plain)


def open_signed(data, kind):
    must(data[:5] == b"LBSG\x01", f"an envelope around {kind}")
    payload, signer, signature = decode(data[5:])
    said = b"lifeboat signed object 1\0" + kind.encode() + b"\0" + blake3(payload).digest()
    Ed25519PublicKey.from_public_bytes(signer).verify(signature, said)
    return record(payload), signer


def name(text):
    plain = "".join(chr(byte) if chr(byte).isascii() and (chr(byte).isalnum() or chr(byte) in "-_.") else f"%{byte:02X}" for byte in text.encode())
    return "%2E" + plain[1:] if plain.startswith(".") else plain


class Vault:
    def __init__(self, directory, keyfile, owner):
        self.directory = pathlib.Path(directory)
        self.keys = [identity(pathlib.Path(keyfile).read_text())]
        self.read_roster(owner)
        self.refs = identity(self.private("keys/refs/").decode())
        must(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(self.private("keys/owner/").decode().split()[-1])).public_key().public_bytes(*RAW) == self.owner, "the owner's key")
        self.contents, self.chunk_keys = {}, {}
        for key in self.list("keys/content/"):
            dataset = urllib.parse.unquote(key.split("/")[2])
            if dataset not in self.contents:
                self.contents[dataset] = identity(self.private("/".join(key.split("/")[:3]) + "/").decode())
        self.read_ledger()

    def list(self, prefix):
        top = self.directory / prefix
        found = [path.relative_to(self.directory).as_posix() for path in top.rglob("*") if path.is_file()] if top.is_dir() else []
        return sorted(found)

    def get(self, key):
        return (self.directory / key).read_bytes()

    def read_roster(self, owner):
        newest = self.list("roster/")[-1]
        roster, signer = open_signed(self.get(newest), "vault.roster")
        must(blake3(signer).digest()[:16].hex() == owner and roster[3] == signer, "the owner that is expected")
        self.id, self.owner = roster[0], signer
        self.members = {bytes(member[2]): Record(member) for member in roster[7]}

    def signed(self, key, kind, *roles):
        """What is signed by the owner, or who has one of these roles and was not revoked for this number."""
        value, signer = open_signed(self.get(key), kind)
        must(value[0] == self.id, f"{key} is of this vault")
        if signer != self.owner:
            member = self.members[signer]
            must(set(member[1]) & set(roles), f"{key} is signed by who may")
            if member[4] is not None:
                (below,) = [number for chain, number in member[4][0] if key.startswith(chain)] or [0]
                must(int(key.rsplit("/", 1)[1]) < below, f"{key} is from before its signer was revoked")
        return value

    def private(self, prefix):
        newest = [key for key in self.list(prefix) if key.endswith(".cert")][-1]
        statement = self.signed(newest, "vault.key", 0)
        must(statement[1] == prefix, f"{newest} is about its own pair")
        file = self.get(f"{prefix}{statement[5].hex()}.age")
        must(blake3(file).digest() == statement[5], f"the file that {newest} names")
        text = open_age(file, self.keys)
        must(text is not None, f"a key that opens it ({prefix})")
        return "\n".join(line for line in text.decode().splitlines() if not line.startswith("#")).encode()

    def read_ledger(self):
        """What prunes took: no recovery point, though its snapshot or tombstone may still lie there."""
        steps = {}
        for key in self.list("prune/"):
            _, generation, step = key.split("/")
            steps.setdefault(int(generation), {})[step] = key
        self.pruned, self.undecided, self.cuts = set(), set(), {}
        folded = max([number for number, found in steps.items() if "fold" in found], default=0)
        if folded:
            fold = self.signed_prune(steps[folded]["fold"], "fold")
            self.pruned |= {f"{chain}{number:010}" for chain, points in fold[5] for number, _, _ in points}
            self.cut(fold[10])
        for number in sorted(number for number in steps if number > folded):
            found = steps[number]
            proposal = self.signed_prune(found["proposal"], "proposal")
            points = {key for key, _, _ in proposal[6]}
            if "sweep" not in found:
                self.undecided |= points
                continue
            sweep = self.signed_prune(found["sweep"], "sweep")
            if sweep[4]:
                continue
            kept = set(self.signed_prune(found["done"], "done")[4]) if "done" in found else set()
            self.pruned |= points - set(sweep[8]) - kept
            self.cut(sweep[7])
        for key in self.list("tombstone/"):
            stone = self.signed_as(key, "vault.tombstone", 4)
            must(stone[1] == key.replace("tombstone/", "snap/"), f"{key} is about the point under its name")
            if stone[1] in self.undecided:
                self.pruned.add(stone[1])

    def signed_prune(self, key, step):
        return self.signed_as(key, f"vault.prune.{step}", 4)

    def signed_as(self, key, kind, *roles):
        value, signer = open_signed(self.get(key), kind)
        must(value[0] == self.id and (signer == self.owner or set(self.members[signer][1]) & set(roles)), f"{key} is signed by who may")
        return value

    def cut(self, logs):
        for chain, below, last in logs:
            if self.cuts.get(chain, (0, None))[0] < below:
                self.cuts[chain] = (below, last)

    # Where chunks lie.

    def chunks_of(self, dataset):
        content, found = self.contents[dataset], {}
        for key in self.list("index/"):
            _, host, of, last = key.split("/")
            if urllib.parse.unquote(of) != dataset:
                continue
            if last.startswith("moved-"):
                index = self.signed_as(key, "vault.moved", 4)
                secret, packs = record(open_sealed(index[8], [content], key))
                self.add(found, packs, content, secret)
            else:
                index = self.signed(key, "vault.index", 0)
                must(index[1:4] == [urllib.parse.unquote(host), dataset, int(last)], f"{key} lies in its place")
                secret, _, packs = record(open_sealed(index[8], [content], key))
                self.add(found, packs, content, secret)
        return found

    def add(self, found, packs, content, secret):
        for pack in packs:
            digest, size, salt, frames = pack[:4]
            origins = pack[4] if len(pack) > 4 else None
            name_of = f"pack/{digest.hex()[:2]}/{digest.hex()}"
            for ordinal, frame in enumerate(frames):
                frame = Record(frame)
                offset, length, plain, codec, chunks = frame[:5]
                sealed, of_salt, number = (secret, salt, ordinal) if origins is None else (*origins[frame[5]], frame[6])
                at = 0
                for entry in range(0, len(chunks), 36):
                    chunk = chunks[entry : entry + 32]
                    (size_of,) = struct.unpack_from("<I", chunks, entry + 32)
                    place = (name_of, offset, length, codec, content, sealed, of_salt, number, at, size_of)
                    found.setdefault(chunk, []).append(place)
                    at += size_of
                must(at == plain, "a frame is as long as its chunks")

    def chunk(self, places, key, wanted):
        for name_of, offset, length, codec, content, sealed, salt, ordinal, at, size in places[wanted]:
            if not (self.directory / name_of).exists():
                continue
            secret = open_age(sealed, [content])
            pack_key = hkdf(secret, salt, b"lifeboat pack 1")
            nonce = bytes(4) + struct.pack(">Q", ordinal)
            data = self.get(name_of)[offset : offset + length]
            plain = unpack(codec, AESGCM(pack_key).decrypt(nonce, data, f"{self.id}|pack|{salt.hex()}|{ordinal}".encode()))
            chunk = plain[at : at + size]
            must(blake3(chunk, key=key).digest() == wanted, "a chunk under its own id")
            return chunk
        must(False, f"chunk {wanted.hex()} is nowhere")

    def check_packs(self):
        """Each pack can be read by itself: its header and its directory lead to every chunk, too."""
        for key in self.list("pack/"):
            data = self.get(key)
            must(blake3(data).hexdigest() == key.rsplit("/", 1)[1], f"{key} is named by what it holds")
            must(data[:5] == b"LBPK\x01" and data[-4:] == b"LBPE", f"{key} is a pack")
            (length,) = struct.unpack_from("<I", data, 5)
            vault, slot, secret, salt, moved = [record(data[9 : 9 + length])[place] for place in range(5)]
            must(vault == self.id and slot == 1, f"{key} is of this vault")
            opened = open_age(secret, list(self.contents.values()))
            (size,) = struct.unpack_from("<I", data, len(data) - 8)
            last = 2**64 - 1
            plain = AESGCM(hkdf(opened, salt, b"lifeboat pack 1")).decrypt(bytes(4) + struct.pack(">Q", last), data[-8 - size : -8], f"{vault}|pack|{salt.hex()}|{last}".encode())
            must(len(decode(plain)) > 0, f"{key} holds frames")

    # Recovery points.

    def points(self):
        for key in self.list("snap/"):
            if key in self.pruned:
                continue
            snapshot = self.signed(key, "vault.snapshot", 0)
            _, host, dataset, sequence = key.split("/")
            must(snapshot[1:4] == [urllib.parse.unquote(host), urllib.parse.unquote(dataset), int(sequence)], f"{key} lies in its place")
            must(key == f"snap/{name(snapshot[1])}/{name(snapshot[2])}/{sequence}", "names have one spelling")
            sealed = record(open_sealed(snapshot[20], [self.contents[snapshot[2]]], key))
            self.check_refs(snapshot)
            yield key.removeprefix("snap/"), snapshot[2], sealed[0], sealed[2][:32]

    def check_refs(self, snapshot):
        """Everything that the point needs, as a pruner reads it."""
        place = f"refs/{name(snapshot[1])}/{name(snapshot[2])}/"
        digest = snapshot[18]
        if digest is None:
            return

        def pages_of(digest):
            data = self.get(place + digest.hex())
            must(blake3(data).digest() == digest, "refs are named by their own hash")
            refs, _ = open_signed(data, "vault.refs")
            return record(open_sealed(refs[4], [self.refs], place))

        own, row = pages_of(digest)
        needed = 0
        for holder, ordinal, page_hash in row:
            page = (own if holder is None else pages_of(holder)[0])[ordinal]
            must(blake3(page).digest() == page_hash and len(page) % 32 == 0, "a page of ids")
            needed += len(page) // 32
        must(needed > 0, "a point needs something")

    def restore(self, out):
        for point, dataset, root, key in self.points():
            places = self.chunks_of(dataset)
            chunk = lambda wanted: self.chunk(places, key, wanted)
            kind, version, files, length, _, top = decode(chunk(root))
            must((kind, version) == ("lifeboat tree", 1), "a tree")
            target = out / point
            target.mkdir(parents=True)
            seen = self.directory_of(target, top, chunk)
            must(seen == (files, length), "a tree counts its files")

    def pieces(self, pieces, chunk):
        for piece in pieces:
            if isinstance(piece, int):
                yield bytes(piece)
            else:
                wanted, offset, length = piece
                yield chunk(wanted)[offset : offset + length]

    def directory_of(self, target, node, chunk):
        listing = node[5] if 5 in node else b"".join(self.pieces(node[4], chunk))
        must(listing[0] == 1, "a listing of version 1")
        at, before, files, bytes_in_all = 1, b"", 0, 0
        while at < len(listing):
            child, at = cbor(listing, at)
            must(child[0] > before and b"/" not in child[0] and child[0] not in (b".", b".."), "names in order")
            before = child[0]
            path = os.path.join(os.fsencode(target), child[0])
            if child[1] == 0:
                os.mkdir(path)
                found = self.directory_of(path, child, chunk)
                files, bytes_in_all = files + found[0], bytes_in_all + found[1]
            elif child[1] == 1:
                data = b"".join(self.pieces(child[4], chunk))
                must(len(data) == child[3], "pieces add up to the length")
                with open(path, "wb") as file:
                    file.write(data)
                os.chmod(path, child[2][0])
                os.utime(path, ns=(child[2][3] * 10**9 + child[2][4],) * 2)
                files, bytes_in_all = files + 1, bytes_in_all + child[3]
            elif child[1] == 2:
                os.symlink(child[6], path)
            else:
                must(child[1] == 3, "a kind of node")
                os.mkfifo(path)
        return files, bytes_in_all

    # Logs.

    def logs(self, out):
        timelines = {}
        for key in self.list("log/"):
            words = key.split("/")
            chain = "/".join(words[:4]) + "/"
            objects = timelines.setdefault(chain, {})
            if words[4] == "gathered":
                first, last = map(int, words[5].split("-"))
                container = self.signed_as(key, "vault.log.gathered", 4)
                must(len(container[6]) == last - first + 1, "a container holds what its name says")
                objects.update(zip(range(first, last + 1), container[6]))
            else:
                objects[int(words[4]) * 1000 + int(words[5])] = self.get(key)
        for chain, objects in timelines.items():
            dataset, lineage, timeline = map(urllib.parse.unquote, chain.split("/")[1:4])
            begin, previous = self.cuts.get(chain, (0, None))
            for number in range(begin, max(objects) + 1):
                entry, signer = open_signed(objects[number], "vault.log")
                must(set(self.members[signer][1]) & {0}, "a host signs its log")
                must(entry[:5] == [self.id, dataset, lineage, int(timeline), number], "an object lies in its place")
                must(number == 0 or entry[5] == previous, "a log is a chain")
                previous = blake3(objects[number]).digest()
                place = f"{chain}{number // 1000:09}/{number % 1000:03}"
                payload = open_sealed(entry[14], [self.contents[dataset]], place)
                must(len(payload) == entry[13], "a payload is as long as its head says")
                target = out / dataset / lineage / timeline
                target.mkdir(parents=True, exist_ok=True)
                (target / f"{number:012}").write_bytes(payload)


def main():
    directory, keyfile, owner, out = sys.argv[1:]
    out = pathlib.Path(out)
    vault = Vault(directory, keyfile, owner)
    vault.check_packs()
    vault.restore(out / "points")
    vault.logs(out / "logs")


main()
