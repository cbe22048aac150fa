#!/bin/bash
# A whole Ceph in one directory: a monitor, a store in memory, a gateway that speaks S3. Lives until stdin ends.
# Usage: radosgw.sh DIRECTORY FREE-PORT FREE-PORT FREE-PORT
set -e
D=$1 MON=$2 MON1=$3 RGW=$4
# Of one that was killed, by a process with the same number.
rm -rf "$D"
mkdir -p "$D/mon" "$D/osd"
FSID=$(cat /proc/sys/kernel/random/uuid)
cat > "$D/ceph.conf" <<C
[global]
fsid = $FSID
mon host = [v2:127.0.0.1:$MON/0,v1:127.0.0.1:$MON1/0]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
run dir = $D
admin socket =
pid file =
log file = $D/\$name.log
keyring = $D/keyring
mon data = $D/mon
osd data = $D/osd
osd objectstore = memstore
memstore device bytes = 8589934592
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 1
mon data avail warn = 2
paxos propose interval = 0.02
paxos min wait = 0.01
[client.admin]
rgw frontends = beast endpoint=127.0.0.1:$RGW
rgw enable ops log = false
rgw enable usage log = false
rgw thread pool size = 128
rgw relaxed region enforcement = true
debug rgw = 1
C
end() {
    kill $(jobs -p) 2> /dev/null || true
    wait || true
    rm -rf "$D"
}
trap end EXIT
K=$D/keyring
ceph-authtool -C "$K" -g -n mon. --cap mon 'allow *' > /dev/null
ceph-authtool "$K" -g -n client.admin --cap mon 'allow *' --cap osd 'allow *' > /dev/null
ceph-authtool "$K" -g -n osd.0 --cap mon 'allow profile osd' --cap osd 'allow *' > /dev/null
monmaptool --create --fsid "$FSID" --addv a "[v2:127.0.0.1:$MON,v1:127.0.0.1:$MON1]" "$D/monmap" > /dev/null
export CEPH_CONF=$D/ceph.conf
ceph-mon --mkfs -i a --monmap "$D/monmap" --keyring "$K"
ceph-mon -f -i a > "$D/mon.out" 2>&1 < /dev/null &
OSD=$(cat /proc/sys/kernel/random/uuid)
timeout 300 ceph osd new "$OSD" > /dev/null
ceph-osd --no-mon-config -i 0 --mkfs --osd-uuid "$OSD" > "$D/osd.out" 2>&1
ceph-osd --no-mon-config -f -i 0 >> "$D/osd.out" 2>&1 < /dev/null &
user() { radosgw-admin --no-mon-config user create --uid="$1" --display-name="$1" --access-key="$2" --secret="$3" > /dev/null; }
user owner OWNERKEY owner-secret
# A second class of storage.
radosgw-admin --no-mon-config zonegroup placement add --rgw-zonegroup default --placement-id default-placement --storage-class COLD > /dev/null
radosgw-admin --no-mon-config zone placement add --rgw-zone default --placement-id default-placement --storage-class COLD \
    --data-pool default.rgw.cold.data > /dev/null
radosgw --no-mon-config -f -n client.admin > "$D/rgw.out" 2>&1 < /dev/null &
user host HOSTKEY host-secret
user small SMALLKEY small-secret
radosgw-admin --no-mon-config quota set --quota-scope=user --uid=small --max-size=262144 > /dev/null
radosgw-admin --no-mon-config quota enable --quota-scope=user --uid=small > /dev/null
until curl --silent --output /dev/null "http://127.0.0.1:$RGW/"; do sleep 0.05; done
echo ready
cat > /dev/null
