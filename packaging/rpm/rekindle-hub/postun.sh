if [ -d /run/systemd/system ]; then
	systemctl daemon-reload >/dev/null 2>&1 || :
	if [ "$1" -ge 1 ]; then
		systemctl try-restart rekindle-hub.service >/dev/null 2>&1 || :
	fi
fi
if [ "$1" -eq 0 ]; then
	# rpm removes only directories that a package lists, and the tool that makes ours cannot list them.
	rmdir --ignore-fail-on-non-empty /usr/share/doc/rekindle-hub /usr/share/licenses/rekindle-hub 2>/dev/null || :
fi
