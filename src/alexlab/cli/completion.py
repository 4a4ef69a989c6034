"""`alexlab completion`: completion of commands, groups, options and keys in bash and zsh."""

from collections.abc import Sequence

# Hydra's own script completes `python src/train.py`, but no program with subcommands.
SCRIPT = """\
_alexlab() {
    local word=${COMP_WORDS[COMP_CWORD]} line=${COMP_LINE#* } command=${COMP_WORDS[1]} choices
    if [ "$COMP_CWORD" -lt 2 ]; then
        choices="COMMANDS"
    elif [[ ! "$command" =~ ^(runs|new|completion)$ ]]; then
        choices=$(COMP_LINE=$line COMP_POINT=${#line} alexlab "$command" -sc query=bash 2> /dev/null)
    fi
    COMPREPLY=($(compgen -o default -W "$choices" -- "$word"))
}
if [ -n "$ZSH_VERSION" ]; then autoload -U +X bashcompinit && bashcompinit; fi
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F _alexlab alexlab
"""


def completion_script(commands: Sequence[str]) -> str:
    """Return shell code that completes `alexlab COMMAND KEY=VALUE ...`."""
    return SCRIPT.replace("COMMANDS", " ".join(commands))
