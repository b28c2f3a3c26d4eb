if [ -d /run/systemd/system ]; then
	systemctl daemon-reload >/dev/null 2>&1 || :
	if [ "$1" -ge 1 ]; then
		# The agent may have asked for this very upgrade, and ends only after the step in hand, which is us: not waited for.
		systemctl --no-block try-restart rekindle-agent.service rekindle-courier.service >/dev/null 2>&1 || :
	fi
fi
if [ "$1" -eq 0 ]; then
	# rpm removes only directories that a package lists, and the tool that makes ours cannot list them.
	rmdir --ignore-fail-on-non-empty /usr/lib/rekindle/drain.d /usr/lib/rekindle /usr/share/doc/rekindle /usr/share/licenses/rekindle 2>/dev/null || :
fi
