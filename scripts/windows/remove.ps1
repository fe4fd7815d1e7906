<#
.SYNOPSIS
Removes the bridge from this machine. 从本机移除。

.DESCRIPTION
Ends the bridge, takes its task and its environment away. Ring, logs, reports, calendar.toml and qmt.toml
(which holds passwords) stay, so that installing it again goes on where it ended; -All deletes these too.
Other files in the folder, the clone and Python are not touched.

结束 qmt-windows，删除计划任务和独立环境。ring、日志、报告、calendar.toml 以及 qmt.toml（含密码）会保留，
重新安装后可以接着用；加 -All 则一并删除。目录中的其他文件、仓库和 Python 都不会动。

.PARAMETER All
Deletes ring, logs, reports, calendar.toml and qmt.toml too; ticks not yet published are lost.
同时删除 ring、日志、报告、calendar.toml 和 qmt.toml；尚未发布的 tick 会丢失。

.EXAMPLE
powershell -ExecutionPolicy Bypass -File scripts\windows\remove.ps1
#>
[CmdletBinding()]
param(
    [switch]$All
)
. (Join-Path $PSScriptRoot 'shared.ps1')

$folder = Get-BridgeHome
$null = Suspend-Bridge
if (Get-BridgeTask) {
    Unregister-ScheduledTask -TaskName $TaskName -Confirm:$false
}
# By name, and never the folder as a whole: QMT_HOME may name one that holds other things.
$ours = @('venv')
if ($All) {
    $ours += @('qmt.toml', 'ring.sqlite*', 'functions.json', 'calendar.toml', 'logs', 'reports', 'supervisor.*')
}
foreach ($name in $ours) {
    if (Test-Path -LiteralPath $folder) {
        # -Filter takes * alone for a wildcard: a folder's [brackets] stay what they are.
        Get-ChildItem -LiteralPath $folder -Filter $name -Force |
            ForEach-Object { Remove-Item -LiteralPath $_.FullName -Recurse -Force }
    }
}
if ($All) {
    if ((Test-Path -LiteralPath $folder) -and -not (Get-ChildItem -LiteralPath $folder -Force)) {
        Remove-Item -LiteralPath $folder
    }
    Write-Both 'Removed, with everything it kept.' '已移除，并删除了它保存的全部内容。'
}
else {
    Write-Both "Removed. Kept in ${folder}: qmt.toml (passwords), ring, logs, reports. -All deletes these too." `
        "已移除。保留在 ${folder} 中：qmt.toml（含密码）、ring、日志、报告。加 -All 可一并删除。"
}
exit 0
