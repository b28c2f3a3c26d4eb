if [ -d /run/systemd/system ]; then
	systemctl daemon-reload >/dev/null 2>&1 || :
	if [ "$1" -ge 1 ]; then
		# The agent may have asked for this very upgrade, and ends only after the step in hand, which is us: not waited for.
		systemctl --no-block try-restart rekindle-hub.service >/dev/null 2>&1 || :
	fi
fi
