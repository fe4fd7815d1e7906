<#
.SYNOPSIS
Installs the bridge's Windows side into an environment of its own. 把 Windows 端安装到独立的环境中。

.DESCRIPTION
Makes %LOCALAPPDATA%\qmt-bridge\venv (or venv below QMT_HOME) with Python 3.11, or 3.10, 64 bit, and
installs the locked packages and this clone into it. It needs no administrator and opens nothing to
the network; packages come from where pip is told to take them (PIP_INDEX_URL or pip.ini). It may be
run again at any time: a bridge that was started by its task is ended and started again.

在 %LOCALAPPDATA%\qmt-bridge\venv（或 QMT_HOME 下的 venv）建立环境，需要 64 位 Python 3.11 或 3.10，安装锁定
版本的依赖和本仓库。不需要管理员权限，不开放任何端口；安装包的来源由 pip 的设置（PIP_INDEX_URL 或 pip.ini）决定。
可以重复运行：由计划任务启动的 qmt-windows 会先结束，装完再启动。

.PARAMETER Python
Path of the python.exe to use instead of what the py launcher finds. 指定要使用的 python.exe。

.PARAMETER Fresh
Makes the environment anew. 重新建立环境。

.EXAMPLE
powershell -ExecutionPolicy Bypass -File scripts\windows\install.ps1
#>
[CmdletBinding()]
param(
    [string]$Python = '',
    [switch]$Fresh
)
. (Join-Path $PSScriptRoot 'shared.ps1')

function Read-Python {
    # Return what one Python is ('3.11', 64, its folder), or nothing where it does not run.
    param([string]$Program, [string[]]$Options)
    # What a missing version says on its error stream must not end the script.
    $ErrorActionPreference = 'Continue'
    $ask = "import struct,sys;print('%d.%d'%sys.version_info[:2],8*struct.calcsize('P'),sys.base_prefix,sep='|')"
    try {
        $answer = & $Program @Options -c $ask 2>$null | Select-Object -Last 1
    }
    catch {
        return $null
    }
    if ($LASTEXITCODE -ne 0 -or -not $answer) {
        return $null
    }
    $version, $bits, $folder = ([string]$answer).Split('|', 3)
    return [pscustomobject]@{
        Program = $Program; Options = $Options
        Version = $version; Bits = [int]$bits; Folder = $folder
    }
}

function Find-Python {
    # Return the Python to make the environment with; end the script where none will do.
    if ($Python) {
        $found = Read-Python $Python @()
        if (-not $found) {
            Stop-Here "$Python does not run." "$Python 无法运行。"
        }
        if ($found.Version -notin '3.10', '3.11', '3.12', '3.13') {
            Stop-Here "$Python is Python $($found.Version); 3.11 or 3.10 is needed." `
                "$Python 是 Python $($found.Version)；需要 3.11 或 3.10。"
        }
        $candidates = @($found)
    }
    else {
        $candidates = @(
            Read-Python 'py' @('-3.11')
            Read-Python 'py' @('-3.10')
            Read-Python 'python' @()
        ) | Where-Object { $_ -and $_.Version -in '3.11', '3.10' }
    }
    foreach ($one in $candidates) {
        if ($one.Bits -ne 64) {
            Write-Both "Python $($one.Version) in $($one.Folder) has $($one.Bits) bits; xtquant needs 64." `
                "$($one.Folder) 中的 Python $($one.Version) 是 $($one.Bits) 位；xtquant 需要 64 位。"
        }
        elseif ($one.Folder -like '*WindowsApps*') {
            # Windows redirects what it writes to AppData into a folder that others do not see.
            Write-Both 'Python from the Microsoft Store cannot be used here.' `
                '不能使用 Microsoft Store 版的 Python。'
        }
        else {
            return $one
        }
    }
    Stop-Here ('No 64-bit Python 3.11 or 3.10 was found. Install Python 3.11 with the "Windows installer (64-bit)" ' +
        'of the official site, py launcher included; for this user only is enough. Then run this again.') `
        ('没有找到 64 位的 Python 3.11 或 3.10。请用官方网站的 "Windows installer (64-bit)" 安装 Python 3.11，' +
        '勾选 py launcher，只为当前用户安装即可；然后重新运行本脚本。')
}

$root = Split-Path -Parent (Split-Path -Parent $PSScriptRoot)
$lock = Join-Path $root 'requirements-windows.lock'
$folder = Get-BridgeHome
$venv = Join-Path $folder 'venv'
$installed = Get-BridgePython
$found = Find-Python
if ($found.Version -notin '3.10', '3.11') {
    Write-Both "Python $($found.Version) may serve, but only 3.11 and 3.10 are tested on Windows." `
        "Python $($found.Version) 或许可用，但在 Windows 上只测试过 3.11 和 3.10。"
}

$wasOn = Suspend-Bridge
try {
    $there = $null
    if (Test-Path -LiteralPath $installed) {
        $there = Read-Python $installed @()
    }
    if ($Fresh -or -not $there -or $there.Version -ne $found.Version) {
        Write-Both "Making $venv with Python $($found.Version)." "正在用 Python $($found.Version) 建立 $venv。"
        $null = New-Item -ItemType Directory -Force -Path $folder
        $options = $found.Options
        & $found.Program @options -m venv --clear $venv
        Assert-Exit 'The environment could not be made' '无法建立环境'
    }
    Write-Both 'Installing the locked packages; this takes some minutes the first time.' `
        '正在安装锁定版本的依赖，第一次需要几分钟。'
    & $installed -m pip --disable-pip-version-check install --require-hashes --no-deps --only-binary ':all:' -r $lock
    Assert-Exit 'The packages could not be installed; what pip says is above' '依赖安装失败，原因见上面 pip 的输出'
    & $installed -m pip --disable-pip-version-check install --no-deps --no-build-isolation --force-reinstall $root
    Assert-Exit 'The bridge could not be installed; what pip says is above' '本项目安装失败，原因见上面 pip 的输出'
    & $installed -m pip --disable-pip-version-check check
    Assert-Exit 'The packages do not fit each other' '依赖之间不一致'
}
finally {
    Resume-Bridge $wasOn
}

if (Test-Path -LiteralPath (Join-Path $folder 'qmt.toml')) {
    Write-Both 'Installed.' '安装完成。'
}
else {
    Write-Both 'Installed. Next: on the Linux machine run docker/join, then join.ps1 here with the line it prints.' `
        '安装完成。下一步：在 Linux 机器上运行 docker/join，再在这里用它打印的那一行运行 join.ps1。'
}
exit 0
