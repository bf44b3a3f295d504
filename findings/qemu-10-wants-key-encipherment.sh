#!/usr/bin/env bash
# QEMU 10.0.2 refuses a TLS certificate whose key usage is digitalSignature alone, which QEMU 7.2.22 takes.
#
# Software: QEMU 10.0.2 (Debian's bookworm-backports, packages of the version below) beside QEMU 7.2.22 (Debian 12).
# Behaviour: a certificate with an elliptic key and critical key usage digitalSignature, which is all that TLS 1.3 and ECDHE
# in TLS 1.2 need, is refused as an object `tls-creds-x509` before anything is connected to. With keyEncipherment added it
# is taken, although a key of this kind is never used for that.
# Matters to us: `pki issue` adds keyEncipherment, or such a hypervisor could not attach to `[nbd] listen`.
#
# Output seen:
#   digitalSignature: qemu-img: Certificate FOLDER/client-cert.pem usage does not permit key encipherment
#   digitalSignature,keyEncipherment: qemu-img: Could not open '…': Failed to connect to '127.0.0.1:9': Connection refused
# Ends with 0 where this is still so, with 1 where it has changed. Needs Debian 12, the libraries of its
# QEMU, and openssl.
set -euo pipefail

version=1:10.0.2+ds-2+deb13u1~bpo12+1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
# The backports of the mirror that this machine has Debian from, with lists of its own.
mirror=$(apt-get indextargets --format '$(SITE)' 'Identifier: Packages' 'Release: bookworm' 'Component: main' | head -n 1)
mkdir -p lists/partial
echo "deb $mirror bookworm-backports main" > sources.list
apt() {
    apt-get -q -o Dir::Etc::SourceList="$folder/sources.list" -o Dir::Etc::SourceParts="$folder/none" \
        -o Dir::State::Lists="$folder/lists" -o Dir::Cache="$folder" -o Debug::NoLocking=1 -o APT::Sandbox::User=root "$@"
}
{ apt update && apt download "qemu-utils=$version"; } > download.log 2>&1 || { cat download.log; exit 2; }
dpkg-deb -x ./*.deb unpacked
unpacked/usr/bin/qemu-img --version | head -n 1

curve="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
# shellcheck disable=SC2086
openssl req -x509 $curve -keyout ca.key -out ca-cert.pem -days 2 -subj /CN=ca \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign 2> /dev/null
# shellcheck disable=SC2086
openssl req $curve -keyout client-key.pem -out client.csr -subj /CN=client 2> /dev/null

said_with() {
    printf 'keyUsage=critical,%s\nextendedKeyUsage=clientAuth\nsubjectAltName=DNS:client\n' "$1" > extensions
    openssl x509 -req -in client.csr -CA ca-cert.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions \
        -out client-cert.pem 2> /dev/null
    unpacked/usr/bin/qemu-img info --object tls-creds-x509,id=tls,endpoint=client,dir="$folder" \
        --image-opts driver=nbd,host=127.0.0.1,port=9,export=x,tls-creds=tls 2>&1 || true
}

bare=$(said_with digitalSignature)
both=$(said_with digitalSignature,keyEncipherment)
echo "digitalSignature: $bare"
echo "digitalSignature,keyEncipherment: $both"
case $bare in *"does not permit key encipherment"*) ;; *) echo "this has changed"; exit 1 ;; esac
case $both in *"Connection refused"*) ;; *) echo "this has changed"; exit 1 ;; esac
