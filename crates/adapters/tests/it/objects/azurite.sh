#!/bin/bash
# Microsoft's own emulator of Azure's blobs, in memory, with one container. Lives until stdin ends.
# Usage: azurite.sh PROGRAM FREE-PORT CONTAINER KEY
set -e
PORT=$2 CONTAINER=$3 KEY=$4 ACCOUNT=devstoreaccount1
"$1" --inMemoryPersistence --silent --disableTelemetry --skipApiVersionCheck --blobHost 127.0.0.1 --blobPort "$PORT" > /dev/null 2>&1 < /dev/null &
trap 'kill $!' EXIT
until curl --silent --output /dev/null "http://127.0.0.1:$PORT/"; do sleep 0.05; done
DATE=$(LC_ALL=C date -u '+%a, %d %b %Y %H:%M:%S GMT')
HEX=$(printf %s "$KEY" | base64 -d | od -An -v -tx1 | tr -d ' \n')
SIGNED="PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:$DATE\nx-ms-version:2021-08-06\n/$ACCOUNT/$ACCOUNT/$CONTAINER\nrestype:container"
SIGNATURE=$(printf "$SIGNED" | openssl dgst -sha256 -mac HMAC -macopt "hexkey:$HEX" -binary | base64)
curl --silent --show-error --fail-with-body --request PUT --header "x-ms-date: $DATE" --header 'x-ms-version: 2021-08-06' --header 'Content-Length: 0' \
    --header "Authorization: SharedKey $ACCOUNT:$SIGNATURE" "http://127.0.0.1:$PORT/$ACCOUNT/$CONTAINER?restype=container" >&2
echo ready
cat > /dev/null
