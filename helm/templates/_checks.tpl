{{- /* What the schema cannot say. */}}
{{- define "steersman.checks" -}}
{{- if and (ne .Values.router.type "auto") (ne .Values.router.type "none") (ne (include "steersman.several" .) "true") -}}
{{- fail (printf "router.type: %s needs replicas to choose from; set replicaCount above 1, or autoscaling.enabled, or router.type: none" .Values.router.type) -}}
{{- end -}}
{{- with .Values.autoscaling -}}
{{- if and .enabled (lt (int .maxReplicas) (int .minReplicas)) -}}
{{- fail (printf "autoscaling.maxReplicas: %d is less than autoscaling.minReplicas: %d; set it to that at least" (int .maxReplicas) (int .minReplicas)) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- /* Seconds from the wish to stop a pod until it is killed. */}}
{{- define "steersman.gracePeriod" -}}
{{- $needed := add .Values.drain.preStopSeconds .Values.drain.timeoutSeconds 10 | int -}}
{{- $asked := int .Values.terminationGracePeriodSeconds -}}
{{- if and $asked (lt $asked $needed) -}}
{{- fail (printf "terminationGracePeriodSeconds: %d would kill requests that drain; drain.preStopSeconds %d + drain.timeoutSeconds %d + 10 = %d: set at least that, or 0 for just that" $asked (int .Values.drain.preStopSeconds) (int .Values.drain.timeoutSeconds) $needed) -}}
{{- end -}}
{{ $asked | default $needed }}
{{- end }}
