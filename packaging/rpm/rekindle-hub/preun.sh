# 0: the last version goes. On upgrade the host stays guarded until the new agent takes over.
if [ "$1" -eq 0 ]; then
	if [ -d /run/systemd/system ]; then
		systemctl --no-reload disable --now rekindle-hub.service >/dev/null 2>&1 || :
	else
		systemctl --no-reload disable rekindle-hub.service >/dev/null 2>&1 || :
	fi
fi
