<#
.SYNOPSIS
Joins the bridge with the one line that docker/join printed on Linux. 用 Linux 上 docker/join 打印的那一行接入。

.DESCRIPTION
Writes qmt.toml into the bridge's folder and tries both Redis servers with it. The line holds
passwords: treat it like one. A bridge that runs is not disturbed; it reads the file when it starts.

把连接信息写入 qmt.toml，并试连两个 Redis。这一行里含有密码，请像密码一样保管。
正在运行的 qmt-windows 不受影响，下次启动时读取。

.PARAMETER Line
What docker/join printed. It is asked for when it is not given, and then stays out of the shell's history.
docker/join 打印的内容；省略时会提示输入，这样不会留在命令历史里。

.EXAMPLE
powershell -ExecutionPolicy Bypass -File scripts\windows\join.ps1
#>
[CmdletBinding()]
param(
    [Parameter(Position = 0)]
    [string]$Line = ''
)
. (Join-Path $PSScriptRoot 'shared.ps1')

$installed = Assert-Installed
if (-not $Line) {
    $Line = Read-Host 'The line that docker/join printed / docker/join 打印的那一行'
}
& $installed -m qmt_windows join $Line.Trim()
exit $LASTEXITCODE
