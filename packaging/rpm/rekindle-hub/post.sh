# Newer systems do the first two by file trigger; older ones do not, and twice is harmless.
systemd-sysusers rekindle-hub.conf
systemd-tmpfiles --create rekindle-hub.conf
if [ "$1" -eq 1 ]; then
	systemctl --no-reload preset rekindle-hub.service >/dev/null 2>&1 || :
fi
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload >/dev/null 2>&1 || :
	if [ "$1" -eq 1 ]; then
		# It starts only where a configuration exists, and only if the preset of the site enabled it.
		if systemctl --quiet is-enabled rekindle-hub.service 2>/dev/null; then
			systemctl start rekindle-hub.service >/dev/null 2>&1 || :
		fi
	fi
fi
