#!/bin/sh
# Installs what is missing of Debian's packages; as root. None of them is to serve
# anything on this machine, neither now nor after its next start.
#
#	install.sh nginx haproxy
set -eu
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
	trap 'rm -f $policy' EXIT
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod +x $policy
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
for package; do
	systemctl disable --quiet "$package" 2>/dev/null || true # most have no service
done
