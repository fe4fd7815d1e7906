<#
.SYNOPSIS
Checks this machine, the terminal and the way to Redis. 检查本机、终端以及到 Redis 的连接。

.DESCRIPTION
Runs `qmt-windows doctor`: each line says ok, warn or fail, what it means and what to do. It changes
nothing. What is given is handed on, for instance --probe.

运行 `qmt-windows doctor`：每一行给出 ok、warn 或 fail、含义以及处理办法，不做任何修改。
给出的参数会原样传给它，例如 --probe。

.PARAMETER Arguments
Options of `qmt-windows doctor`. 传给 `qmt-windows doctor` 的选项。

.EXAMPLE
powershell -ExecutionPolicy Bypass -File scripts\windows\check.ps1
#>
[CmdletBinding()]
param(
    [Parameter(ValueFromRemainingArguments = $true)]
    [string[]]$Arguments = @()
)
. (Join-Path $PSScriptRoot 'shared.ps1')

$installed = Assert-Installed
& $installed -m qmt_windows doctor @Arguments
exit $LASTEXITCODE
