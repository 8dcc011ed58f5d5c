-- The 25 routes with the largest share of delayed flights, among those flown at least once a week.
select
    route,
    origin_name,
    coalesce(dest_name, dest) as dest_name,
    distance_mi,
    flights,
    delayed,
    cancelled,
    delayed_share,
    mean_arrival_delay_min
from marts.delays_by_route
where flights >= 52
order by delayed_share desc, route
limit 25
