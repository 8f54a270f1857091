"""The built-in plugins: one file each, on the public API alone.

Lives here: nothing but the plugins; each file holds a class `Plugin`. Elsewhere: who finds them (entry points, plugin_loading.py), what they may import (`hookline`, and nothing below it).
Idea: whatever a built-in plugin can do, any other plugin can do."""
